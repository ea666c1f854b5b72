"""Graphs that lead out of their folder: found without onnx, in every place where onnx allows a tensor or a node."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hub_upload import build, verify
from trainer_ext.hub.folder import write_manifest
from trainer_ext.hub.graphs import graph_problems

onnx = pytest.importorskip("onnx")
FLOAT = onnx.TensorProto.FLOAT


def outside(location: str, *keys: tuple[str, str]) -> "onnx.TensorProto":
    """A tensor whose numbers lie in another file."""
    tensor = onnx.TensorProto(name="w", dims=[1], data_type=FLOAT, data_location=onnx.TensorProto.EXTERNAL)
    for key, value in [("offset", "0"), ("location", location), *keys]:
        tensor.external_data.add(key=key, value=value)
    return tensor


def model(**graph: object) -> "onnx.ModelProto":
    return onnx.ModelProto(ir_version=10, graph=onnx.GraphProto(name="g", **graph))


def node(domain: str = "", **attribute: object) -> "onnx.NodeProto":
    return onnx.NodeProto(op_type="If", domain=domain, attribute=[onnx.AttributeProto(name="a", **attribute)])


def sparse(tensor: "onnx.TensorProto") -> "onnx.SparseTensorProto":
    return onnx.SparseTensorProto(values=tensor)


def in_function(tensor: "onnx.TensorProto") -> "onnx.ModelProto":
    made = model()
    made.functions.add(name="f", node=[node(t=tensor)])
    made.functions.add(name="f2").attribute_proto.add(name="a", t=tensor)
    return made


def in_training(tensor: "onnx.TensorProto") -> "onnx.ModelProto":
    made = model()
    made.training_info.add().algorithm.initializer.append(tensor)
    return made


# Everywhere in a model that a tensor may stand.
PLACES: dict[str, Callable] = {
    "initializer": lambda t: model(initializer=[t]),
    "sparse": lambda t: model(sparse_initializer=[sparse(t)]),
    "sparse indices": lambda t: model(sparse_initializer=[onnx.SparseTensorProto(indices=t)]),
    "attribute": lambda t: model(node=[node(t=t)]),
    "attributes": lambda t: model(node=[node(tensors=[t])]),
    "sparse attribute": lambda t: model(node=[node(sparse_tensor=sparse(t))]),
    "sparse attributes": lambda t: model(node=[node(sparse_tensors=[sparse(t)])]),
    "branch": lambda t: model(node=[node(g=model(initializer=[t]).graph)]),
    "branches": lambda t: model(node=[node(graphs=[model(node=[node(t=t)]).graph])]),
    "function": in_function,
    "training": in_training,
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_weights_elsewhere_are_found_in_every_place(tmp_path: Path, place: Callable) -> None:
    (tmp_path / "m.onnx").write_bytes(place(outside("../../etc/passwd")).SerializeToString())
    assert graph_problems(tmp_path) == [
        "m.onnx takes weights from '../../etc/passwd', no .onnx.data file beside it; build the folder again"
    ]
    (tmp_path / "m.onnx.data").write_bytes(bytes(4))
    (tmp_path / "m.onnx").write_bytes(place(outside("m.onnx.data")).SerializeToString())
    assert graph_problems(tmp_path) == []


LOCATIONS = ["/etc/passwd", "", ".", "..", "a/m.onnx.data", "../m.onnx.data", "other.onnx.data", "config.json",
             "m.onnx", "./m.onnx.data", "m.onnx.data\0", "..\\m.onnx.data", "m.onnx.data/"]  # fmt: skip


@pytest.mark.parametrize("location", LOCATIONS)
def test_only_the_weights_beside_a_graph_are_named(tmp_path: Path, location: str) -> None:
    (tmp_path / "a").mkdir()
    for name in ("m.onnx.data", "config.json", "a/m.onnx.data"):
        (tmp_path / name).write_bytes(bytes(4))
    (tmp_path / "m.onnx").write_bytes(model(initializer=[outside(location)]).SerializeToString())
    assert len(graph_problems(tmp_path)) == 1
    (tmp_path / "m.onnx").rename(tmp_path / "M.ONNX")  # and the last of two locations counts
    (tmp_path / "M.ONNX").write_bytes(
        model(initializer=[outside("m.onnx.data", ("location", location))]).SerializeToString()
    )
    assert len(graph_problems(tmp_path)) == 1


@pytest.mark.parametrize("domain", ["com.microsoft", "ai.onnx.contrib", "evil", "ai.onnxx"])
def test_operators_of_somebody_are_named(tmp_path: Path, domain: str) -> None:
    (tmp_path / "m.onnx").write_bytes(model(node=[node(domain, i=1)]).SerializeToString())
    [line] = graph_problems(tmp_path)
    assert line.startswith(f"m.onnx needs operators of {domain!r}")
    (tmp_path / "m.onnx").write_bytes(model(node=[node("ai.onnx", i=1)]).SerializeToString())
    assert graph_problems(tmp_path) == []


WHOLE = model(initializer=[outside("m.onnx.data")], node=[node(t=outside("m.onnx.data"))]).SerializeToString()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60) | st.integers(0, len(WHOLE)).map(lambda end: WHOLE[:end]))
def test_any_bytes_are_a_graph_or_a_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    assert all("\n" not in line for line in graph_problems(tmp_path))


def test_nesting_without_end_is_no_graph(tmp_path: Path) -> None:
    graph = model().graph
    for _ in range(20):
        graph = model(node=[node(g=graph)]).graph
    (tmp_path / "m.onnx").write_bytes(onnx.ModelProto(graph=graph).SerializeToString())
    assert graph_problems(tmp_path) == ["m.onnx is not an ONNX graph; remove it, or build the folder again"]


def test_verify_loads_no_graph_that_leads_out(golden: Path, tmp_path: Path) -> None:
    folder = build(golden / "tiny_model", tmp_path / "hub")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "text_model.onnx").write_bytes(model(initializer=[outside("/etc/passwd")]).SerializeToString())
    write_manifest(folder)
    [failure] = verify(folder)
    assert failure.startswith("onnx/text_model.onnx takes weights from '/etc/passwd'")


def test_onnx_is_not_needed(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(model(initializer=[outside("../x")]).SerializeToString())
    code = "import sys; sys.modules['onnx'] = None; from pathlib import Path; from trainer_ext.hub.graphs import *; "
    code += f"print(len(graph_problems(Path({str(tmp_path)!r}))))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"

"""Build, verify and push a model folder for the Hub: what the command line ``hub_upload.py`` runs.

From the foundation up: ``errors``, ``probe`` (also the program of the fresh interpreter), ``installed`` (the model
package and its checkpoints), ``onnx_export``, ``hub_names`` (what the Hub accepts), ``secrets_scan``, ``folder``
(contents and manifest), ``code_references`` (whose code a configuration names), ``card_record`` (what a run left),
``card``, and the three steps ``build``, ``verify``, ``push``. Of ours they see the face of ``modeling_jina_clip``
alone, and no other part of ``trainer_ext`` sees them.

Libraries that take seconds to import are imported where they are used: wrong arguments are answered at once.
"""

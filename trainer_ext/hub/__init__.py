"""Build, verify and push a model folder for the Hub: the steps behind the command line ``hub_upload.py``.

Read in this order; ``build``, ``verify`` and ``push`` are the three steps, the others serve them:

- ``installed``: the model package that is installed here, the files it serves, and its checkpoints
- ``safety``: what a published folder must not hold: pickles, secrets, references to foreign code
- ``folder``: the folder's files and its manifest
- ``run_record``: what a run has left beside its model, in words for the card
- ``card``: the model card, from the texts in ``card_template/``
- ``shortening``: the first layers of each tower
- ``onnx_export``: both towers as ONNX graphs
- ``build``: a trained model becomes a folder
- ``probe``: what ``verify`` embeds; also the program of the fresh interpreter, so it stands alone
- ``verify``: the folder loads elsewhere and gives the same vectors
- ``push``: the verified folder becomes one commit

Of ours the room uses ``files``, ``sentence_files`` and the face of ``modeling_jina_clip``; no other room uses it.
Libraries that take seconds to import are imported inside functions, so that wrong arguments are answered at once.
"""

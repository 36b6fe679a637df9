"""Writes the IR as a native, trainable `torch.nn.Module`.

`ops` holds one small lowering for each ONNX operator, `functions` what torch has no single call for, and
`builder` the context that lowerings work in.
"""

"""Reads and writes `.tflite` files, float and quantized, without TensorFlow.

`schema` holds the file format as data, `flatbuffer` and `builder` read and write any flatbuffer by it, `file`
is the
checked content of one `.tflite`; `lifting` and `lowering` hold one small function an operator.
"""

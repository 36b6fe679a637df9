"""TensorFlow -> IR: a program (a traced graph with its weights) is lifted operator by operator."""

"""What torch has no single call for, as plain functions of tensors that written graphs call."""

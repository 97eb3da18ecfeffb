"""The arithmetic of diagnostics: from gradients, logits and texts to a few numbers.

Promises: whatever is gathered is a sum, or is pooled exactly, so that the result does not depend
on how batches were cut over ranks. Knows no engine, no pool and no file; `report` and `bleu` load
no torch.
"""

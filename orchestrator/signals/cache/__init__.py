"""The signal cache of one node: records of what roles have said, in files that its readers
share.

`keys` names a record, `store.Store` is the one writer of a directory, `reader.Reader` reads beside
it, `transfer` copies to and from other places. Imports neither ray nor torch.
"""

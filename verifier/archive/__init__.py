"""
Archives: rows that the hot store has no room for, moved into Parquet files that the log proves.

A row is deleted only when the file with it is on the disk, and the log's proof of that file is beside it.
"""

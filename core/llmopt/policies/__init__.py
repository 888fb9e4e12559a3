"""The policies of a call, one to a file: each decides without I/O and takes its clock as an argument."""

"""The folders that this program writes and reads: files, their manifest and hashes, states, and how a folder is replaced."""

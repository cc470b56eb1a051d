"""What can be proven of a file: integers only, every path covered."""

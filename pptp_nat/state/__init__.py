"""What outlives a process: records of calls, where they are kept, and who takes them over."""

"""What a run needs and gives, before it starts: sizes, memory, disk, duration."""

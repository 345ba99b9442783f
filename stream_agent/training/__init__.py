"""Scripts that fit what the packs ship: recogniser, signals, statistical planner; nothing here is imported at run time."""

"""What C do we write? Plan, memory, packing, emission."""

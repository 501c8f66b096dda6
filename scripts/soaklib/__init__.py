"""The endurance test: the real program under kills, faults, eviction and hostile input, with its promises checked."""

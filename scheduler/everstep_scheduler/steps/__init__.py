"""One task, one step: load, call, judge, plan, and what streams from it."""

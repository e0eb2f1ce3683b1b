"""What comes next: graphs, the plan of a step, the moves of a task, the inline driver and the client."""

"""The graph: its builder, its pure half, its channels and schemas. Decides; touches nothing."""

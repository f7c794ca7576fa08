"""A campaign as a whole: specification, plan, stages, execution."""

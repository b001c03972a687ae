"""One record of a run, rendered as JSON, Markdown, HTML and a terminal table."""

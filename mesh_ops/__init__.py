"""What every long-running process of ours offers its operators: HTTP pages, log lines, metrics."""

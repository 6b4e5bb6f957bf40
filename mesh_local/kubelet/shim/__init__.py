"""The process beside each container: starts it, writes its log, outlives the runtime. Needs only Python."""

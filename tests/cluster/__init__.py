"""The check of a real cluster (`run`), and the demo application, which the end-to-end tests use too."""

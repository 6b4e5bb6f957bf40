"""What makes the stored objects come true: controllers, garbage collection and the scheduler.

`run.run_controllers` starts them all. Each watches through an `informer`, is woken through a `queue` and
reconciles one object at a time under `runner`; what it should do is decided in `decisions`, which is pure.
"""

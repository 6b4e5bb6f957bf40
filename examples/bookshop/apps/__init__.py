"""The programs. In a pod they are the folder `apps` of a ConfigMap and start with `python3 -m apps.NAME`."""

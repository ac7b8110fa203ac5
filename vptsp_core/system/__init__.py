"""Use the machine: files, locks, signals, devices, several processes, tables in host memory."""

"""Use the machine: files, locks, signals, devices, several processes, rows in host memory."""

"""What the machine adds: files, locks, signals, devices, processes side by side, rows in host memory."""

"""What the operating system gives: processes, memory, ports, the service manager, log lines. No models."""

"""What the router and its service manager owe each other: readiness, the watchdog, given sockets, the unit file."""

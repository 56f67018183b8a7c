"""The demo: built-in engines that are real processes, hold real memory and say who they are."""

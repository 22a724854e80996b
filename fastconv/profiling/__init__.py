"""Where the time goes: recorded calls, timers and limits."""

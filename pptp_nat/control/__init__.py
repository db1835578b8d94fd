"""The daemon's ear: requests on its unix socket, answers, and events for subscribers."""

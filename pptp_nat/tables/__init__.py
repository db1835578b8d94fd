"""What people are shown: rows of calls and connections, as text, JSON, XML and a live screen."""

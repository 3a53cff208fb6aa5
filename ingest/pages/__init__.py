"""Pages: HTML pages and problem details. May import forms only, and no HTTP framework."""

"""The pictures of README.md and docs/how-it-works.md, as SVG."""

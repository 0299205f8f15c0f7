"""Pages of people (for administrators), of signing in, and of links that let somebody in."""

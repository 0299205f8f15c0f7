"""The generator learns from those of its images that selector and policy like; the result is accepted or refused."""

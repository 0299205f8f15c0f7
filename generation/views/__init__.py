"""Pages of generation: jobs, images, releases. For administrators; an image also for study owners."""

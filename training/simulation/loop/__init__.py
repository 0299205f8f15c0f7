"""A simulated closed loop but for the application it runs on: arms, panel, images, figures, report. Pure."""

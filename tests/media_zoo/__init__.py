"""Odd sources made by ffmpeg and mkvmerge, upscaled by us and compared by tools that are not ours."""

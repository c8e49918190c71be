"""The loop that trains any network on rendered views: teachers with labels, students with cached targets too."""

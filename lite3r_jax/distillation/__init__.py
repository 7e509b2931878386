"""Distills a dense teacher into a student with efficient attention that shares its weights."""

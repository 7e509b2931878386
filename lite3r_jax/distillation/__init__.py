"""A dense teacher into a student with efficient attention that shares the teacher's weights."""

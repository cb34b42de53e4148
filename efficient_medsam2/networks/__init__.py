"""Networks: the slice runner, the small and official SAM 2 shapes, students, model folders."""

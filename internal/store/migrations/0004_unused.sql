-- Tables that nothing ever used.
DROP TABLE sessions;
DROP TABLE schedules;

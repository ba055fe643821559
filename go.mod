module github.com/hearth-ci/hearth

go 1.26.0

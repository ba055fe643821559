package hearth_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/hearth-ci/hearth"
)

func Example() {
	ctx := context.Background()
	host, err := hearth.OpenHost(ctx, hearth.HostConfig{})
	if err != nil {
		log.Fatal(err) // says what is missing, and what mends it
	}
	defer host.Close(ctx)
	sessions := hearth.NewSessions(host, 0, 4)
	defer sessions.Close(ctx)
	executor := &hearth.Executor{Sessions: sessions, Host: host}

	result, err := executor.Run(ctx, hearth.Workflow{
		Name:  "greet",
		Setup: []hearth.Step{{Name: "prepare", Run: "mkdir -p out; echo $GREETING > out/greeting"}},
		Steps: []hearth.Step{
			{Name: "read", Run: "cat out/greeting; uname -s"},
			{Name: "risky", Run: "rm -r out; exit 3", ContinueOnError: true, Snapshot: true},
			{Name: "still there", Run: "cat out/greeting"},
		},
		Cleanup:    []hearth.Step{{Name: "clean", Run: "rm -r out"}},
		Env:        map[string]string{"GREETING": "hello from a machine"},
		CachePaths: []string{".cache"},
	}, hearth.Context{
		Repository: "octo/greet", Event: "push", Ref: "refs/heads/main",
		Secrets: map[string]string{"TOKEN": "s3cr3t"},
	})
	if err != nil {
		log.Fatal(err) // it could not be run: nobody's test has failed
	}
	for _, s := range result.Steps {
		fmt.Printf("%s %s: %s, exit code %d\n%s", s.Phase, s.Name, s.Outcome, s.ExitCode, s.Output)
	}
	fmt.Println(result.Conclusion, sessions.Stats().Completed)
}

func ExampleParseWorkflow() {
	workflow, err := hearth.ParseWorkflow(`
on: push
env: {CI: "1"}
jobs:
  test:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4 # is Context.Dir
      - run: go vet ./...
      - run: go test ./...
        timeout-minutes: 10
      - run: rm -rf out
        if: always()
`)
	if err != nil {
		log.Fatal(err) // says what of it a Workflow has not got, with line and column
	}
	for _, s := range workflow.Steps {
		fmt.Println(s.Run, s.Timeout)
	}
	fmt.Println(len(workflow.Cleanup), workflow.Env["CI"])
	// Output:
	// go vet ./... 0s
	// go test ./... 10m0s
	// 1 1
}

func ExampleFromWords() {
	workflow, err := hearth.FromWords("run cargo test and if it passes, build the project")
	if err != nil {
		log.Fatal(err) // says which words were not understood
	}
	for _, s := range workflow.Steps {
		fmt.Println(s.Run)
	}
	// Output:
	// cargo test
	// cargo build
}

func ExampleFromEvent() {
	body := []byte(`{"action": "opened", "number": 7, "repository": {"full_name": "octo/greet", "default_branch": "main"}, "sender": {"login": "ada"},
		"pull_request": {"number": 7, "head": {"sha": "e6c3c2d0a3b1f4958d7c6b5a49382716050f4e3d", "repo": {"full_name": "ada/greet"}}}}`)
	c, err := hearth.FromEvent("pull_request", body) // X-GitHub-Event, and a body whose signature was checked
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(c.Repository, c.Ref, c.SHA[:7], c.Actor, c.Fork)
	// Output: octo/greet refs/pull/7/merge e6c3c2d ada true
}

func ExampleNewClient() {
	ctx := context.Background()
	server := hearth.NewClient(os.Getenv("HEARTH_URL"), hearth.WithAuth(os.Getenv("TOKEN")))
	sessions := hearth.NewSessions(server, 0, 4)
	defer sessions.Close(ctx)
	session, err := sessions.New(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for range 2 {
		end, err := session.Exec(ctx, hearth.Command{Argv: []string{"cat", "/nonesuch"}, Stdout: os.Stdout})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(end.Code, end.Explanation.Lines, "seen before:", end.Explanation.Seen)
	}
	forecast, err := server.Predict(ctx, "", "cat /nonesuch") // takes an admin's token
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(forecast.PFail > .1, forecast.Failures)
}

package hearth_test

import (
	"context"
	"fmt"
	"log"

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

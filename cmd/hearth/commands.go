package main

import "github.com/spf13/cobra"

// commands are all there is, in the order in which help lists them.
func (a *app) commands() []*cobra.Command {
	return []*cobra.Command{
		a.runCommand(),
		a.serveCommand(),
		a.workerCommand(),
		a.eventsCommand(),
		a.approveCommand(),
		a.cancelCommand(),
		a.runsCommand(),
		a.showCommand(),
		a.explainCommand(),
		a.debugCommand(),
		a.rewindCommand(),
		a.forkCommand(),
		a.diffCommand(),
		a.networkCommand(),
		a.logsCommand(),
		a.artifactsCommand(),
		a.cacheCommand(),
		a.learnCommand(),
		a.predictCommand(),
		a.graphCommand(),
		a.gcCommand(),
		a.compatCommand(),
		a.lintCommand(),
		a.newCommand(),
		a.vmCommand(),
		a.imageCommand(),
		a.doctorCommand(),
		a.tokenCommand(),
		a.benchCommand(),
		a.versionCommand(),
	}
}

// One program that is a whole cluster: its first argument says which part it is. One, because the parts
// share most of their code, and linking them together takes a quarter of the time and disk.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/coredns/coredns/coremain"
	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/client-go/util/keyutil"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"

	// As upstream's own main packages import them.
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"

	// What the Corefile of a cluster names.
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
)

const usage = `Usage: nearhop-cluster PART [FLAGS]
Parts: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, kube-proxy, coredns, kubectl
Each takes the flags of its namesake: nearhop-cluster kubectl get nodes
nearhop-cluster new-key prints a private key for signing ServiceAccount tokens`

func main() {
	if len(os.Args) < 2 {
		fail(usage)
	}
	part := os.Args[1]
	// Each part reads its command line from here, as if it were a program of its own.
	os.Args = os.Args[1:]
	switch part {
	case "etcd":
		etcdmain.Main(os.Args)
	case "coredns":
		coremain.Run()
	case "new-key":
		printNewKey()
	default:
		run(part)
	}
}

var commands = map[string]func() *cobra.Command{
	"kube-apiserver":          apiserver.NewAPIServerCommand,
	"kube-controller-manager": controllermanager.NewControllerManagerCommand,
	"kube-proxy":              proxy.NewProxyCommand,
	"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
	"kubelet":                 func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) },
	"kubectl":                 kubectl.NewDefaultKubectlCommand,
}

func run(part string) {
	command, known := commands[part]
	if !known {
		fail(fmt.Sprintf("there is no part %q\n%s", part, usage))
	}
	os.Exit(cli.Run(command()))
}

func printNewKey() {
	key, err := keyutil.MakeEllipticPrivateKeyPEM()
	if err != nil {
		fail(err.Error())
	}
	os.Stdout.Write(key)
}

func fail(why string) {
	fmt.Fprintln(os.Stderr, why)
	os.Exit(2)
}

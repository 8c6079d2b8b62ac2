package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/terraform-plugin-sdk/v2/helper/schema"
	"github.com/hetznercloud/hcloud-go/v2/hcloud"
)

// shutdownLimit is how long a server may take to shut down before it is deleted all the same.
const shutdownLimit = 30 * time.Second

func rename(ctx context.Context, d *schema.ResourceData, client *hcloud.Client, changed *hcloud.Server) error {
	_, _, err := client.Server.Update(ctx, changed, hcloud.ServerUpdateOpts{Name: d.Get("name").(string), Labels: labels(d)})
	return err
}

// changeType turns a server into one of another type: only while it is off, and with a larger disk only for good.
func changeType(ctx context.Context, d *schema.ResourceData, client *hcloud.Client, changed *hcloud.Server) error {
	return whileOff(ctx, client, changed, func() error {
		action, _, err := client.Server.ChangeType(ctx, changed, hcloud.ServerChangeTypeOpts{
			ServerType:  &hcloud.ServerType{Name: d.Get("server_type").(string)},
			UpgradeDisk: !d.Get("keep_disk").(bool),
		})
		return begun(ctx, client, action, err)
	})
}

// whileOff does something to a server that is off, and lets one that ran run again, also where it failed.
func whileOff(ctx context.Context, client *hcloud.Client, changed *hcloud.Server, change func() error) error {
	if changed.Status != hcloud.ServerStatusRunning {
		return change()
	}
	action, _, err := client.Server.Poweroff(ctx, changed)
	if err := begun(ctx, client, action, err); err != nil {
		return fmt.Errorf("power off: %w", err)
	}
	failure := change()
	if err := powerOn(ctx, client, changed); err != nil && failure == nil {
		failure = fmt.Errorf("power on: %w", err)
	}
	return failure
}

func powerOn(ctx context.Context, client *hcloud.Client, changed *hcloud.Server) error {
	return patiently(ctx, func() error {
		action, _, err := client.Server.Poweron(ctx, changed)
		return begun(ctx, client, action, err)
	})
}

func reset(ctx context.Context, client *hcloud.Client, changed *hcloud.Server) error {
	return patiently(ctx, func() error {
		action, _, err := client.Server.Reset(ctx, changed)
		return begun(ctx, client, action, err)
	})
}

// shutDown asks a server to end what runs on it, and waits a while for that.
func shutDown(ctx context.Context, client *hcloud.Client, ending *hcloud.Server) error {
	action, _, err := client.Server.Shutdown(ctx, ending)
	if err := begun(ctx, client, action, err); err != nil {
		return err
	}
	for deadline := time.Now().Add(shutdownLimit); time.Now().Before(deadline); {
		found, _, err := client.Server.GetByID(ctx, ending.ID)
		if err != nil {
			return err
		}
		if found == nil || found.Status == hcloud.ServerStatusOff {
			return nil
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
	return nil
}

// setUp switches on what a server cannot be ordered with.
func setUp(ctx context.Context, d *schema.ResourceData, client *hcloud.Client, made *hcloud.Server) error {
	steps := []struct {
		wanted bool
		make   func(context.Context, *schema.ResourceData, *hcloud.Client, *hcloud.Server) error
	}{
		{d.Get("backups").(bool), setBackups},
		{d.Get("iso").(string) != "", setISO},
		{d.Get("rescue").(string) != "", setRescue},
		{d.Get("delete_protection").(bool) || d.Get("rebuild_protection").(bool), setProtection},
	}
	for _, step := range steps {
		if !step.wanted {
			continue
		}
		if err := step.make(ctx, d, client, made); err != nil {
			return err
		}
	}
	return nil
}

func setBackups(ctx context.Context, d *schema.ResourceData, client *hcloud.Client, changed *hcloud.Server) error {
	wanted, has := d.Get("backups").(bool), changed.BackupWindow != ""
	switch {
	case wanted && !has:
		action, _, err := client.Server.EnableBackup(ctx, changed, "")
		return begun(ctx, client, action, err)
	case has && !wanted:
		action, _, err := client.Server.DisableBackup(ctx, changed)
		return begun(ctx, client, action, err)
	}
	return nil
}

// setISO puts another disk in, and starts the server from it.
func setISO(ctx context.Context, d *schema.ResourceData, client *hcloud.Client, changed *hcloud.Server) error {
	if changed.ISO != nil {
		action, _, err := client.Server.DetachISO(ctx, changed)
		if err := begun(ctx, client, action, err); err != nil {
			return err
		}
	}
	if wanted := d.Get("iso").(string); wanted != "" {
		iso, _, err := client.ISO.Get(ctx, wanted)
		if err != nil {
			return err
		}
		if iso == nil {
			return fmt.Errorf("ISO not found: %s", wanted)
		}
		action, _, err := client.Server.AttachISO(ctx, changed, iso)
		if err := begun(ctx, client, action, err); err != nil {
			return err
		}
	}
	return reset(ctx, client, changed)
}

// setRescue lets a server start its rescue system, or its own system again.
func setRescue(ctx context.Context, d *schema.ResourceData, client *hcloud.Client, changed *hcloud.Server) error {
	if changed.RescueEnabled {
		action, _, err := client.Server.DisableRescue(ctx, changed)
		if err := begun(ctx, client, action, err); err != nil {
			return err
		}
	}
	if wanted := d.Get("rescue").(string); wanted != "" {
		keys, err := keysOf(ctx, d, client)
		if err != nil {
			return err
		}
		err = patiently(ctx, func() error {
			enabled, _, err := client.Server.EnableRescue(ctx, changed, hcloud.ServerEnableRescueOpts{
				Type: hcloud.ServerRescueType(wanted), SSHKeys: keys,
			})
			if err != nil {
				return err
			}
			return done(ctx, client, enabled.Action)
		})
		if err != nil {
			return err
		}
	}
	return reset(ctx, client, changed)
}

func setProtection(ctx context.Context, d *schema.ResourceData, client *hcloud.Client, changed *hcloud.Server) error {
	return protect(ctx, client, changed, d.Get("delete_protection").(bool), d.Get("rebuild_protection").(bool))
}

func protect(ctx context.Context, client *hcloud.Client, changed *hcloud.Server, deletion, rebuild bool) error {
	action, _, err := client.Server.ChangeProtection(ctx, changed, hcloud.ServerChangeProtectionOpts{
		Delete: &deletion, Rebuild: &rebuild,
	})
	return begun(ctx, client, action, err)
}

// setPlacementGroup moves a server into another group; the cloud allows that only while it is off.
func setPlacementGroup(ctx context.Context, d *schema.ResourceData, client *hcloud.Client, changed *hcloud.Server) error {
	return whileOff(ctx, client, changed, func() error {
		if changed.PlacementGroup != nil {
			action, _, err := client.Server.RemoveFromPlacementGroup(ctx, changed)
			if err := begun(ctx, client, action, err); err != nil {
				return err
			}
		}
		id := d.Get("placement_group_id").(int)
		if id == 0 {
			return nil
		}
		action, _, err := client.Server.AddToPlacementGroup(ctx, changed, &hcloud.PlacementGroup{ID: int64(id)})
		return begun(ctx, client, action, err)
	})
}

func setFirewalls(ctx context.Context, d *schema.ResourceData, client *hcloud.Client, changed *hcloud.Server) error {
	var wanted []int
	for _, id := range d.Get("firewall_ids").(*schema.Set).List() {
		wanted = append(wanted, id.(int))
	}
	has, here := firewallsOf(changed), []hcloud.FirewallResource{ofServer(changed.ID)}
	// New ones first: at no moment is the server without any.
	for _, id := range wanted {
		if !slices.Contains(has, id) {
			if err := attach(ctx, client, &hcloud.Firewall{ID: int64(id)}, here); err != nil {
				return err
			}
		}
	}
	for _, id := range has {
		if !slices.Contains(wanted, id) {
			if err := detach(ctx, client, &hcloud.Firewall{ID: int64(id)}, here); err != nil {
				return err
			}
		}
	}
	return nil
}
